"""The guest's Python at work: arithmetic, objects, sorting with a callback, JSON, regular expressions, hashing, small writes."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def collate(words: list[str]) -> list[str]:
    return sorted(words, key=lambda word: (len(word), word[::-1]))


def round_trip(document: object) -> object:
    return json.loads(json.dumps(document, indent=1))


def main() -> None:
    document = {f"key{i}": [i, str(i), {"square": i * i, "half": i / 2}] for i in range(400)}
    text = json.dumps(document)
    while True:
        fibonacci(15)
        collate(re.findall(r"[a-z]+[0-9]*", text))
        round_trip(document)
        hashlib.sha256(text.encode() * 8).digest()
        with tempfile.TemporaryFile("w", dir="/var/tmp") as file:
            for i in range(200):
                print(i, file=file, flush=i % 20 == 0)


if __name__ == "__main__":
    main()
