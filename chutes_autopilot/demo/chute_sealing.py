"""The instance's half of Chutes' end-to-end transport: opening what was sealed to its key, sealing what it answers.

Written from the description of the transport alone, and shares no code with the gateway's half: each checks the other.
"""

import gzip
import json
import zlib
from base64 import b64encode
from os import urandom

from attrs import define, field
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CIPHERTEXT_BYTES = 1088
"""An encapsulated secret of ML-KEM-768."""
NONCE_BYTES = 12
LEAST_BLOB = CIPHERTEXT_BYTES + NONCE_BYTES + 16 + 18
"""Bytes of a blob that holds an empty gzip member."""
OPENED_BYTES = 32 * 1024 * 1024
"""A request may have so many bytes after decompression."""
GZIP_LEVEL = 1


class NotOpened(Exception):
    """What arrived was not sealed to this instance's key, or not by the rules."""


def _cipher(secret: bytes, ciphertext: bytes, info: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(HKDF(SHA256(), 32, ciphertext[:16], info).derive(secret))


def open_request(private: MLKEM768PrivateKey, blob: bytes) -> bytes:
    """The clear JSON of a sealed request.

    :raises NotOpened: for a wrong key, a changed byte, or anything but exactly one whole gzip member of bounded size.
    """
    if len(blob) < LEAST_BLOB:
        raise NotOpened
    ciphertext, rest = blob[:CIPHERTEXT_BYTES], blob[CIPHERTEXT_BYTES:]
    cipher = _cipher(private.decapsulate(ciphertext), ciphertext, b"e2e-req-v1")
    inflate = zlib.decompressobj(wbits=31)
    try:
        packed = cipher.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], None)
        opened = inflate.decompress(packed, OPENED_BYTES + 1)
    except (InvalidTag, zlib.error):
        raise NotOpened from None
    if len(opened) > OPENED_BYTES or not inflate.eof or inflate.unused_data:
        raise NotOpened
    return opened


def packed(body: bytes) -> bytes:
    """One gzip member."""
    return gzip.compress(body, GZIP_LEVEL, mtime=0)


def seal_packed(public: MLKEM768PublicKey, member: bytes) -> bytes:
    """The blob of an answer that is not a stream.

    :param public: the key that came with the request.
    :param member: the answer in gzip.
    """
    secret, ciphertext = public.encapsulate()
    nonce = urandom(NONCE_BYTES)
    return ciphertext + nonce + _cipher(secret, ciphertext, b"e2e-resp-v1").encrypt(nonce, member, None)


@define(eq=False)
class StreamSealing:
    """The key of one streamed answer, and the events that carry it.

    :param public: the key that came with the request.
    """

    public: MLKEM768PublicKey = field(repr=False)
    ciphertext: bytes = field(init=False, repr=False)
    """What the first event gives to the recipient."""
    _cipher: ChaCha20Poly1305 = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        secret, self.ciphertext = self.public.encapsulate()
        self._cipher = _cipher(secret, self.ciphertext, b"e2e-stream-v1")

    def record(self, clear: bytes) -> bytes:
        """One record: nonce and sealed bytes, independent of all others."""
        nonce = urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, clear, None)


def outer_event(member: str, raw: bytes) -> bytes:
    """An event of the outer stream that carries bytes."""
    return clear_event({member: b64encode(raw).decode()})


def clear_event(value: object) -> bytes:
    """An event of the outer stream, as the relay writes its own."""
    return b"data: %b\n\n" % json.dumps(value).encode()


def gzip_bomb(mebibytes: int) -> bytes:
    """A gzip member of about one kilobyte for each mebibyte of zeros that it becomes."""
    zeros = bytes(1024 * 1024)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)  # such a block may be repeated
    checksum = 0
    for _ in range(mebibytes):
        checksum = zlib.crc32(zeros, checksum)
    size = (mebibytes * len(zeros)) & 0xFFFFFFFF
    trailer = checksum.to_bytes(4, "little") + size.to_bytes(4, "little")
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + block * mebibytes + b"\x03\x00" + trailer
