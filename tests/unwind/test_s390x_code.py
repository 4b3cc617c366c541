"""Instructions of s390x, as literal bytes with what they are to a frame."""

from __future__ import annotations

import pytest

from unwind.arch import FrameStep
from unwind.arch.s390x_code import decode

AT = 0x3FF_FE90_0000


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("07fe", FrameStep(2, goes_on=False)),  # br %r14
        ("078e", FrameStep(2)),  # ber %r14
        ("0700", FrameStep(2)),  # nopr
        ("07f0", FrameStep(2)),  # br to no register
        ("0dee", FrameStep(2)),  # basr %r14,%r14
        ("0000", FrameStep(2, goes_on=False)),
        ("a7f40010", FrameStep(4, AT + 0x20, goes_on=False)),  # j
        ("a784fff8", FrameStep(4, AT - 0x10)),  # je
        ("a7040000", FrameStep(4)),  # jnop
        ("a7170008", FrameStep(4, AT + 0x10)),  # brctg
        ("a7fbff60", FrameStep(4, moves_sp=-160)),  # aghi %r15,-160
        ("a7ebff60", FrameStep(4)),  # aghi %r14,-160
        ("a7f90000", FrameStep(4, moves_sp=None)),  # lghi %r15,0
        ("84120008", FrameStep(4, AT + 0x10)),  # brxh
        ("47f01000", FrameStep(4, goes_on=False)),  # b 0(%r1)
        ("41f0f0a0", FrameStep(4, moves_sp=160)),  # la %r15,160(%r15)
        ("41ff00a0", FrameStep(4, moves_sp=160)),  # la %r15,160(%r15), the register as an index
        ("41f0b0a0", FrameStep(4, moves_sp=None)),  # la %r15,160(%r11)
        ("41f1f0a0", FrameStep(4, moves_sp=None)),  # la %r15,160(%r1,%r15)
        ("b90400f1", FrameStep(4, moves_sp=None)),  # lgr %r15,%r1
        ("b90400ef", FrameStep(4)),  # lgr %r14,%r15
        ("b90b00f1", FrameStep(4, moves_sp=None)),  # slgr %r15,%r1
        ("b92000f1", FrameStep(4)),  # cgr %r15,%r1
        ("b9e910ff", FrameStep(4, moves_sp=None)),  # sgrk %r15,%r15,%r1
        ("b2b20290", FrameStep(4)),  # lpswe
        ("e3f0ff60ff71", FrameStep(6, moves_sp=-160)),  # lay %r15,-160(%r15)
        ("e310ff60ff71", FrameStep(6)),  # lay %r1,-160(%r15)
        ("e3e0f0980024", FrameStep(6, saves_link=152, stores_chain="r14")),  # stg %r14,152(%r15)
        ("e310f0980024", FrameStep(6, stores_chain="r1")),
        ("e3e0f0880024", FrameStep(6, saves_link=136)),
        ("e3e010880024", FrameStep(6)),  # stg %r14,136(%r1)
        ("e3f0f1180004", FrameStep(6, restores_sp=True, moves_sp=None)),  # lg %r15,280(%r15)
        ("e3f013500004", FrameStep(6, moves_sp=None)),  # lg %r15,848(%r1)
        ("e3f430000004", FrameStep(6, moves_sp=None)),  # lg %r15,0(%r4,%r3)
        ("e3f130400004", FrameStep(6, restores_sp=True, moves_sp=None)),  # lg %r15,64(%r1,%r3)
        ("eb6ff0480024", FrameStep(6, saves_link=136)),  # stmg %r6,%r15,72(%r15)
        ("ebeff0880024", FrameStep(6, saves_link=136)),  # stmg %r14,%r15,136(%r15)
        ("eb6df0480024", FrameStep(6)),  # stmg %r6,%r13,72(%r15)
        ("eb6fb0480024", FrameStep(6)),  # stmg %r6,%r15,72(%r11)
        ("eb6ff0e80004", FrameStep(6, restores_sp=True, moves_sp=None)),  # lmg %r6,%r15,232(%r15)
        ("eb6fb0e80004", FrameStep(6, restores_sp=True, moves_sp=None)),  # lmg %r6,%r15,232(%r11)
        ("eb8f02000004", FrameStep(6, moves_sp=None)),  # lmg %r8,%r15,512
        ("eb6ef0e80004", FrameStep(6)),  # lmg %r6,%r14,232(%r15)
        ("c0f400000010", FrameStep(6, AT + 0x20, goes_on=False)),  # jg
        ("c084fffffff8", FrameStep(6, AT - 0x10)),  # jge
        ("c00400000000", FrameStep(6)),  # jgnop
        ("c0e500000010", FrameStep(6)),  # brasl %r14
        ("c2f8ffffff60", FrameStep(6, moves_sp=-160)),  # agfi %r15,-160
        ("c2f4000000a0", FrameStep(6, moves_sp=-160)),  # slgfi %r15,160
        ("c2fa000000a0", FrameStep(6, moves_sp=160)),  # algfi %r15,160
        ("c2fc000000a0", FrameStep(6)),  # cgfi %r15,160
        ("ec120008e064", FrameStep(6, AT + 0x10)),  # cgrj
        ("ec18fff8007c", FrameStep(6, AT - 0x10)),  # cgij
        ("ecffff6000d9", FrameStep(6, moves_sp=-160)),  # aghik %r15,%r15,-160
        ("ecf1ff6000d9", FrameStep(6, moves_sp=None)),  # aghik %r15,%r1,-160
        ("eb6ff0", FrameStep(6, goes_on=False)),
        ("", FrameStep(2, goes_on=False)),
    ],
)
def test_decode(code: str, expected: FrameStep) -> None:
    assert decode(AT, bytes.fromhex(code)) == expected
