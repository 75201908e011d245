"""What an installation consists of: which files with which contents, for which of the set-ups."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[2]
DEFAULT_PREFIX = "/opt/ckptd"
STAMP = ".ckptd-wheel"
"""In the prefix: the digest of the wheel that is installed there; it also marks the prefix as ours to remove."""
UNIT_DIRECTORY = "/etc/systemd/system"
SYSUSERS = "/etc/sysusers.d/ckptd.conf"
CONFIG_DIRECTORY = "/etc/ckptd"
DROP_IN = "10-install.conf"
"""Ours to write; what people change lies beside it, as `systemctl edit` does it."""
CREDENTIALS = "/etc/credstore/ckptd*token"
"""Where the documentation says that tokens of one's own lie."""
UNITS = ("ckptd.service", "ckptd@.service", "ckptd-readonly.service", "ckptd.socket", "ckptd-readonly.socket")
_HIDDEN = ("/home", "/root", "/run/user")
"""What ProtectHome= covers, systemd.exec(5)."""


class Setup(NamedTuple):
    """Which service is set up, and for whom."""

    owner: str | None = None
    """One instance that runs as this user."""
    read_only: bool = False
    group: str | None = None
    """The group that owns the trees."""
    with_socket: bool = True
    prefix: str = DEFAULT_PREFIX

    @property
    def service(self) -> str:
        """The unit that is started."""
        if self.owner is not None:
            return f"ckptd@{self.owner}.service"
        return "ckptd-readonly.service" if self.read_only else "ckptd.service"

    @property
    def socket(self) -> str | None:
        """The unit that holds its port; instances name their ports in their own settings."""
        if self.owner is not None or not (self.with_socket or self.read_only):
            return None
        return self.service.replace(".service", ".socket")

    @property
    def state(self) -> str:
        """Where systemd puts its state."""
        name = self.service.removesuffix(".service")
        return f"/var/lib/{name.replace('@', '-')}"

    @property
    def config(self) -> str:
        """The file with its settings."""
        return f"{CONFIG_DIRECTORY}/{self.owner or 'ckptd'}.yaml"

    @property
    def drop_in(self) -> str:
        """What depends on this machine: the trees, the group, the interpreter."""
        return f"{UNIT_DIRECTORY}/{self.service}.d/{DROP_IN}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Files, and directories of drop-ins, that the service is started from."""
        template = (
            f"{UNIT_DIRECTORY}/{'ckptd@' if self.owner is not None else self.service.removesuffix('.service')}.service"
        )
        return (f"{self.prefix}/{STAMP}", template, f"{template}.d", os.path.dirname(self.drop_in), self.config)


def setup_of(service: str, *, with_socket: bool, group: str | None, prefix: str) -> Setup:
    """The set-up whose service a unit is."""
    owner = service.partition("@")[2].removesuffix(".service") or None
    return Setup(owner, service == "ckptd-readonly.service", group, with_socket, prefix)


def unit_files(prefix: str) -> Iterator[tuple[str, str]]:
    """The units and the user, as they are to lie on the machine: path, contents."""
    for name in UNITS:
        text = (REPO / "systemd" / name).read_text(encoding="utf-8")
        yield f"{UNIT_DIRECTORY}/{name}", text.replace(DEFAULT_PREFIX, prefix)
    yield SYSUSERS, (REPO / "systemd" / "ckptd.sysusers").read_text(encoding="utf-8")


def config_text(roots: Sequence[str], port: int | None) -> str:
    """The commented example with these roots, and this port where it is not the default."""
    text = (REPO / "systemd" / "ckptd.yaml").read_text(encoding="utf-8")
    example = "roots:\n  - /srv/outputs\n"
    assert text.count(example) == 1
    assert text.count("#port:") == 1
    if roots:
        # JSON's strings are YAML's.
        text = text.replace(example, "roots:\n" + "".join(f"  - {json.dumps(root)}\n" for root in roots))
    return text if port is None else text.replace("#port:", "port:").replace("port: 8765", f"port: {port}")


def drop_in_text(setup: Setup, roots: Sequence[str], interpreter: str) -> str:
    """The drop-in of a service: what it may see, write and execute on this machine."""
    lines = [
        f"# Written by scripts/install from the roots in {setup.config}; run it again after changing them.",
        "[Service]",
    ]
    lines += [f"SupplementaryGroups={setup.group}"] if setup.group is not None else []
    lines += dict.fromkeys(line for root in roots for line in _access(root, setup))
    if any("Bind" in line for line in lines):
        # ProtectHome=tmpfs of systemd 252 leaves these writable for everybody, and executable.
        lines += ["ProtectHome=tmpfs", "TemporaryFileSystem=/home:ro /root:ro /run/user:ro"]
    if not interpreter.startswith(("/usr/lib/", f"{setup.prefix}/")):
        library = os.path.join(os.path.dirname(os.path.dirname(interpreter)), "lib")
        lines.append(f"ExecPaths={optional(interpreter)} {optional(library)}")
    return "\n".join(lines) + "\n"


def _access(root: str, setup: Setup) -> Iterator[str]:
    if _is_within(root, _HIDDEN):
        if setup.owner is None or not _is_within(root, (f"/home/{setup.owner}",)):
            yield f"{'BindReadOnlyPaths' if setup.read_only else 'BindPaths'}={optional(root)}"
            yield f"NoExecPaths={optional(root)}"
    elif not setup.read_only and not _is_within(root, ("/data", "/srv")):
        yield f"ReadWritePaths={optional(writable_place(root))}"
        yield f"NoExecPaths={optional(writable_place(root))}"


def writable_place(root: str) -> str:
    """What must be writable for a root: the filesystem it lies on, or, on the machine's own, the root alone.

    systemd binds a directory that is no mount point onto itself. Such a bind hides a filesystem that is mounted there
    later, and keeps one that is unmounted; the mount point itself is left as it is.
    """
    place = root
    while not os.path.exists(place):
        place = os.path.dirname(place)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return root if place == "/" else place


def _is_within(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


def optional(path: str) -> str:
    """A path as a unit takes it, where it need not be there (systemd.exec(5), systemd.syntax(7)).

    Raises:
        ValueError: the path cannot be written in a unit.
    """
    if any(character in path for character in '"\\:') or not path.isprintable():
        raise ValueError(f"{path!r} cannot be named in a unit (quotes, backslashes, colons); give it a plain name")
    return f'"-{path.replace("%", "%%")}"'


def unreachable_for_others(path: str) -> str | None:
    """The directory above `path`, links followed, that other users cannot pass; None if they can."""
    place = os.path.dirname(os.path.realpath(path))
    while True:
        if not os.stat(place).st_mode & 0o001:
            return place
        if place == os.path.dirname(place):
            return None
        place = os.path.dirname(place)
