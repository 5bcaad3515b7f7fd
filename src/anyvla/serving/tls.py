"""Read the certificate of a server, before a policy is loaded."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from anyvla.config import ConfigError


@dataclass(frozen=True)
class TlsFiles:
    """The certificate (with its chain) and the private key of a server, both PEM."""

    certificate: Path
    key: Path

    def make_context(self) -> ssl.SSLContext:
        """Return a context for servers. Raises ConfigError for files that are missing, damaged or of two pairs."""
        for file in (self.certificate, self.key):
            try:
                file.read_bytes()
            except OSError as error:
                raise ConfigError(f"cannot read {file} of --tls-cert and --tls-key: {error.strerror}") from None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_refuse_password)
        except (ssl.SSLError, ValueError) as error:
            reason = "they are of different pairs" if "KEY_VALUES_MISMATCH" in str(error) else str(error)
            raise ConfigError(
                f"--tls-cert {self.certificate} and --tls-key {self.key} are no certificate and its key, in PEM and "
                f"without a password: {reason}"
            ) from None
        return context


def _refuse_password() -> str:
    """Refuse instead of asking at the terminal, where a server may have none."""
    raise ValueError("the key has a password")
