"""Text that went through the wrong decoder, or is no text at all."""

from __future__ import annotations

import re

from .findings import Findings

_FOREIGN = re.compile("[^\x00-\x7f]{2,}")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# What a byte above 127 looks like in Windows-1252 and, for 0x80 to 0x9F, in Latin-1. Windows-1252 leaves five bytes undefined.
_BYTE = {chr(byte): byte for byte in range(0x80, 0x100)}
_BYTE |= {bytes([byte]).decode("cp1252"): byte for byte in range(0x80, 0xA0) if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}


def mojibake(text: str) -> tuple[str, str] | None:
    """The first run of UTF-8 that was decoded as Windows-1252 or Latin-1, with what it should be, or None.

    ``"CafÃ©"`` gives ``("Ã©", "é")``. A run counts when all its characters are bytes in that encoding and the bytes are
    valid UTF-8: text that was meant to be so is hardly ever.
    """
    if text.isascii():
        return None
    for run in _FOREIGN.finditer(text):
        raw = [_BYTE.get(letter) for letter in run[0]]
        known = bytes(byte for byte in raw if byte is not None)
        if len(known) != len(raw):
            continue
        try:
            return run[0], known.decode("utf-8")
        except UnicodeDecodeError:
            continue
    return None


def check_text(found: Findings, file: str, line: int, name: str, text: str) -> None:
    """Note lone surrogates as errors; mojibake, replacement and control characters as warnings."""
    if _CONTROL.search(text):
        found.warn("control-character", file, line, f"{name} holds a control character: {text[:60]!a}")
    if text.isascii():
        return
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        found.error("encoding", file, line, f"{name} holds a lone surrogate, which is no text: {text[:60]!a}")
    elif "\ufffd" in text:
        found.warn("replacement-character", file, line, f"{name} holds U+FFFD: a letter was lost before it came here: {text[:60]!a}")
    elif (wrong := mojibake(text)) is not None:
        found.warn("mojibake", file, line, f"{name} holds {wrong[0]!a}, probably {wrong[1]!a} read as Windows-1252; decode it as UTF-8")
