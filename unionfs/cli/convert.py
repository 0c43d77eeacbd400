"""``unionfs convert``."""

from __future__ import annotations

import click

from unionfs import engines
from unionfs.cli.attach import within_rights
from unionfs.cli.group import CONTEXT, as_bytes, debug_option, layer_options
from unionfs.cli.layers import read_layers
from unionfs.errors import UsageError

_TARGETS = """\b
Targets:
  kernel          the kernel's overlayfs, and unionfs mount
  userxattr       both with -o userxattr, as an ordinary user may mount
  fuse-overlayfs  that program, by root or not
  oci             a directory to be packed as a layer of an OCI image: .wh. files, no attributes of overlays
"""


@click.command(context_settings=CONTEXT, epilog=_TARGETS)
@click.argument("upper", type=as_bytes, metavar="UPPER")
@layer_options
@click.option(
    "--to", "target", type=click.Choice(["kernel", "userxattr", "fuse-overlayfs", "oci"]), required=True, help="Who is to read it."
)
@debug_option
def convert(upper: bytes, lower: tuple[bytes, ...], work: bytes | None, texts: tuple[bytes, ...], target: str) -> None:
    """Rewrite an upper directory in place, so that another program reads the same tree from it.

    Say with -o how it is read now (userxattr, whfiles). Nothing may be mounted on it. Directories that were renamed and files whose data
    are below are copied up whole where the target cannot follow. After a kill the same command finishes what was begun. Lower directories
    stay as they are: each that holds marks of its own is converted as the upper of those below it, the lowest first.

    What the target cannot have is refused before anything is changed: for fuse-overlayfs and oci a name that starts with .wh., for example.
    """
    given = within_rights(read_layers(texts, lower, None, work))
    engines.check_served(given)
    if given.upper is not None:
        raise UsageError("name the upper directory as UPPER, not in -o")
    if not given.lowers:
        raise UsageError("name the lower directories: what the upper refers to is there (see unionfs convert --help)")
    from unionfs.overlay.convert import Target
    from unionfs.overlay.convert import convert as rewrite

    rewrite(upper, given.lowers, Target(target), engines.features(given), work=given.work, data=given.data_lowers)
