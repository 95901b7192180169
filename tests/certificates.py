"""Certificates for the tests of TLS: made anew by each test, and trusted by nothing else."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

LONG_AGO, YESTERDAY = timedelta(days=30), timedelta(days=1)


class Authority:
    """A certificate authority whose certificates are files in a directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._ca, self._directory = trustme.CA(), directory
        self.file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, file: str, *, key_file: str = "", is_expired: bool = False) -> Path:
        """Write a certificate for this host or client, with its chain and its key; return the path.

        `key_file`: write the key to a file of its own.
        """
        now = datetime.now(UTC)
        times = {"not_before": now - LONG_AGO, "not_after": now - YESTERDAY} if is_expired else {}
        issued = self._ca.issue_cert(name, **times)
        chain, key = b"".join(pem.bytes() for pem in issued.cert_chain_pems), issued.private_key_pem.bytes()
        if key_file:
            self._write(key_file, key)
        return self._write(file, chain if key_file else key + chain)

    def _write(self, file: str, data: bytes) -> Path:
        path = self._directory / file
        path.touch(0o600)
        path.write_bytes(data)  # at once: a server may read it at any time
        return path
