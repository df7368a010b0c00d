"""Base58 of bytes, for words that a person copies: letters and digits that look alike are left out.

A leading 1 bit keeps leading zero bytes. Knows no format; `invite` and `ticket` put version and checksum into theirs.
"""

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def encode(data: bytes) -> str:
    number, text = int.from_bytes(b"\x01" + data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = ALPHABET[digit] + text
    return text


def decode(text: str) -> bytes:
    """Raises KeyError with a letter that no such word has; nothing for a text that is no such word's."""
    number = 0
    for letter in text:
        digit = ALPHABET.find(letter)
        if digit < 0:
            raise KeyError(letter)
        number = number * 58 + digit
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return data[1:] if data[:1] == b"\x01" else b""
