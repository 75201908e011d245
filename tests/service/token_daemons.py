"""A `ckptd serve` whose readers need a token."""

import httpx

from tests.service.daemons import DEADLINE_S, Daemon


class TokenDaemon(Daemon):
    """As `Daemon`; its own requests carry the token."""

    def command(self) -> list[str]:
        """See `Daemon`."""
        return [*(part for part in super().command() if part != "--allow-anonymous"), "--access", "token"]

    @property
    def token(self) -> str:
        """What a reader must know."""
        return (self.state / "token").read_text().strip()

    def get(self, path: str, **parameters: object) -> httpx.Response:
        """See `Daemon`."""
        # The port file is there a moment before the token.
        headers = {"Authorization": f"Bearer {self.token}"} if path != "/health" else {}
        shown = {name: str(value) for name, value in parameters.items()}
        return httpx.get(self.url + path, params=shown, headers=headers, timeout=DEADLINE_S)
