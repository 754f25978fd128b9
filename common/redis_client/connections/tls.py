"""Facts about a TLS connection, and messages for TLS errors: certificates, files, or a server without TLS."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import msgspec
import redis

from common.plan import schema
from common.units import printable


class TlsFacts(msgspec.Struct, frozen=True):
    """Facts about a TLS connection. version: such as "TLSv1.3". expires_at_s: when the server's certificate expires, in
    seconds since 1970; None if the certificate was not verified."""

    version: str
    expires_at_s: float | None


def tls_facts(client: redis.Redis) -> TlsFacts | None:
    """Facts about a connection of this client; None without TLS. Opens a connection if the client has no free one.
    Raises TARGET_ERRORS."""
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        sock = connection._sock
        if not isinstance(sock, ssl.SSLSocket):
            return None
        ends = (sock.getpeercert() or {}).get("notAfter")
        return TlsFacts(sock.version() or "", ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None)
    finally:
        pool.release(connection)


def tls_finding(error: OSError, tls: schema.Tls, *, handshaken: bool) -> str:
    """The message for an error of a TLS connection; "" for errors that are not about TLS. It follows the target's name.

    handshaken: the error came after our side had completed the TLS handshake.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_finding(error, tls)
    if handshaken and isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
        # In TLS 1.3, the client completes its handshake before the server verifies the client's certificate.
        return _WANTS_OURS if tls.cert_file is None else f"ended the connection: does it trust {_whole(tls.cert_file)}?"
    if isinstance(error, ssl.SSLError):
        return _file_finding(tls) or _alert_finding(error, tls)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return _file_finding(tls)
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return f"reset the connection: {_NO_TLS}"
    return ""


_WANTS_OURS = "requires a client certificate: set target.tls.cert_file and target.tls.key_file"
_NO_TLS = "does it speak TLS at this port? Without TLS, use redis:// instead of rediss://"


def _certificate_finding(error: ssl.SSLCertVerificationError, tls: schema.Tls) -> str:
    if error.verify_code == _EXPIRED:
        return "has a certificate that has expired: renew it"
    if error.verify_code in _OTHER_NAME:
        return (
            f"has a certificate for another name ({error.verify_message.rstrip('.')}): connect by the name in the "
            "certificate, set target.tls.server_name to this name, or set target.tls.verify to ca"
        )
    if error.verify_code in _UNTRUSTED:
        trusted = "that this machine trusts" if tls.ca_file is None else f"in {_whole(tls.ca_file)}"
        return (
            f"has a certificate that is signed by no authority {trusted}: set target.tls.ca_file to the file of the "
            "authority that signed it"
        )
    return f"has a certificate that is not valid: {error.verify_message}"


# OpenSSL's X509_V_ERR_...
_EXPIRED = 10
_OTHER_NAME = (62, 64)  # host name, IP address
_UNTRUSTED = (2, 18, 19, 20, 21)


def _alert_finding(error: ssl.SSLError, tls: schema.Tls) -> str:
    reason = (error.reason or str(error)).upper().replace(" ", "_")
    if "ALERT" in reason and tls.cert_file is None and ("CERTIFICATE" in reason or "HANDSHAKE_FAILURE" in reason):
        return _WANTS_OURS
    if "ALERT" in reason and ("CA" in reason.split("_") or "CERTIFICATE" in reason):
        ours = f"{_whole(tls.cert_file)} ({reason.lower()})"
        return f"refused our certificate {ours}: use one by an authority that it trusts"
    if any(mark in reason for mark in ("WRONG_VERSION", "RECORD_LAYER", "EOF", "UNKNOWN_PROTOCOL", "PACKET_LENGTH")):
        return f"broke off the TLS handshake: {_NO_TLS}"
    return f"broke off the TLS handshake: {reason.lower()}"


def _file_finding(tls: schema.Tls) -> str:
    """Which of the plan's files cannot be used, and why; "" if all can."""
    for name in ("ca_file", "cert_file", "key_file"):
        path: str | None = getattr(tls, name)
        if path is None:
            continue
        try:
            with Path(path).open("rb") as file:
                file.read(1)
        except OSError as error:
            return f"cannot be used: target.tls.{name}: expected a file in PEM, got {_whole(path)}: {error.strerror}"
    try:
        if tls.ca_file is not None:
            ssl.create_default_context(cafile=tls.ca_file)
    except ssl.SSLError:
        return (
            f"cannot be used: target.tls.ca_file: expected certificates in PEM, got {_whole(tls.ca_file)} without any"
        )
    try:
        if tls.cert_file is not None:
            # Without this argument, OpenSSL asks for the password of an encrypted key on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tls.cert_file, tls.key_file, password="")
    except ssl.SSLError as error:
        files = f"{_whole(tls.cert_file)} and {_whole(tls.key_file or tls.cert_file)}"
        if error.reason == "KEY_VALUES_MISMATCH":
            return (
                f"cannot be used: target.tls.key_file: expected the key of the certificate, got {files}, which differ"
            )
        return (
            f"cannot be used: target.tls.cert_file: expected a certificate and its unencrypted key in PEM, got {files}"
        )
    return ""


def _whole(path: str | Path | None) -> str:
    """A file's name in quotes, never shortened, because names often differ only at their end."""
    return f'"{printable(str(path))}"'
