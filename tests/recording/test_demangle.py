"""Mangled names become readable ones, and hostile ones cost their own name only."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recording import demangle
from recording.demangle import demangled, is_mangled, without_parameters

CPLUSPLUS = {
    "_ZNSt6vectorIiSaIiEE9push_backERKi": "std::vector<int, std::allocator<int> >::push_back",
    "_ZN3foo3barILi3EEEvT_": "foo::bar<3>",
    "_ZZ4mainENKUliE_clEi": "main::{lambda(int)#1}::operator()",
    "_ZN12_GLOBAL__N_13fooEv": "(anonymous namespace)::foo",
    "_ZN12_GLOBAL__N_13fooEv.isra.0": "(anonymous namespace)::foo [clone .isra.0]",
    "_ZNK3FoocvbEv": "Foo::operator bool",
    "_ZlsRSoRK3Foo": "operator<<",
    "_ZStlsISt11char_traitsIcEERSt13basic_ostreamIcT_ES5_PKc": "std::operator<< <std::char_traits<char> >",
    "_ZN1AltERKS_": "A::operator<",
    "_ZN1AclEi": "A::operator()",
    "_ZN1AnwEm": "A::operator new",
    "_ZThn16_N1A1fEv": "non-virtual thunk to A::f",
    "_ZTV3Foo": "vtable for Foo",
    "_ZGTtNSt13runtime_errorD1Ev": "transaction clone for std::runtime_error::~runtime_error",
    "_Z1fIiEPFviEv": "void (*f<int>())(int)",
    "_ZGVZ1fvE1x": "guard variable for f()::x",
    "_ZN1A1fB5cxx11Ev": "A::f[abi:cxx11]",
}
RUST = {
    "_ZN3std2rt10lang_start28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE": "std::rt::lang_start::{{closure}}",
    "_ZN50_$LT$T$u20$as$u20$core..convert..Into$LT$U$GT$$GT$4into17h0123456789abcdefE": "<T as core::convert::Into<U>>::into",
    "_RNvCs1234_7mycrate3foo": "mycrate::foo",
    "_RINvNtC3std3mem8align_ofdE": "std::mem::align_of::<f64>",
    "_RNvMs_NtCsbmNqQUJIY6D_4core3strNtB4_3Foo3bar": "<core::str::Foo>::bar",
}


def doubling(times: int) -> str:
    """A name of twelve characters a doubling: f(a<int, int>, a<a<int, int>, a<int, int> >, ...)."""
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "_Z1f1aIiiE" + "".join(f"S_IS{letters[i]}_S{letters[i]}_E" for i in range(times))


def test_names_as_programmers_wrote_them() -> None:
    pytest.importorskip("cxxfilt")
    pytest.importorskip("rust_demangler")
    plain = ["main", "_start", "", "_Z", "_Zzz", "_Rx", "x" * 5000]
    assert demangled([*CPLUSPLUS, *RUST, *plain]) == CPLUSPLUS | RUST


def test_names_that_break_their_readers_cost_themselves_alone() -> None:
    pytest.importorskip("cxxfilt")
    hostile = [
        doubling(30),
        "_Z" + "P" * 4000 + "i",
        "_Z1f" + "PF" * 2000 + "v",
        "_RNvC1a" + "B_" * 2000,
        "_RF" + "Gzzzzzzzz_" + "EuE",
    ]
    began = time.monotonic()
    assert demangled([*hostile, *CPLUSPLUS]) == CPLUSPLUS
    assert time.monotonic() - began < demangle._TIME_S


@pytest.mark.parametrize("library", ["cxxfilt", "rust_demangler"])
def test_without_a_library_its_names_stay_as_they_are(library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    (tmp_path / f"{library}.py").write_text("raise ImportError")  # type: ignore[operator]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = demangled([*CPLUSPLUS, *RUST])
    assert set(found) == set(RUST if library == "cxxfilt" else CPLUSPLUS)


def test_a_worker_that_cannot_start_leaves_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent")
    assert demangled(CPLUSPLUS) == {}


@given(st.text(st.sampled_from("_ZNRSt0123456789abIEvK$.CBs"), max_size=60).map("_Z{}".format))
@settings(max_examples=20, deadline=None)
def test_any_name_gives_a_name_or_none(name: str) -> None:
    for found in demangled([name, name.replace("_Z", "_R", 1)]).values():
        assert found
        assert found.isprintable()


@given(st.text(st.sampled_from("ab<>()[]{} :,&*~operator01-"), max_size=80))
def test_any_text_keeps_a_name(text: str) -> None:
    assert without_parameters(text) or not text
    assert not is_mangled(text + "\n_Z1fv")
