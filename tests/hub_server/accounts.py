"""Users, organisations and tokens, and who may do what."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("read", "write")


@dataclass(frozen=True)
class Identity:
    """Who a token speaks for: a user, the organisations that the user belongs to, and the token's role."""

    name: str
    role: str
    orgs: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        """Whether `namespace` is the user or one of the user's organisations."""
        return namespace == self.name or namespace in self.orgs

    def may_write(self, namespace: str) -> bool:
        """Whether this token may change repositories under `namespace`."""
        return self.role == "write" and self.owns(namespace)


class Accounts:
    """The tokens that this server knows."""

    def __init__(self) -> None:
        self._tokens: dict[str, Identity] = {}

    def add(self, name: str, token: str, role: str = "write", orgs: tuple[str, ...] = ()) -> Identity:
        """Make `token` valid for user `name`; a user may have several tokens.

        Raises:
            ValueError: If the role is unknown or the token is another user's.
        """
        if role not in ROLES:
            raise ValueError(f"role={role!r}; a token's role is one of {', '.join(ROLES)}")
        known = self._tokens.get(token)
        if known is not None and known.name != name:
            raise ValueError(f"the token of user {known.name!r} cannot be given to {name!r} too")
        self._tokens[token] = Identity(name, role, tuple(orgs))
        return self._tokens[token]

    def find(self, token: str) -> Identity | None:
        """The identity behind a token, None if the token is not valid."""
        return self._tokens.get(token)
