"""``python -m raysae.export``: an SAE, or a whole atlas, into the format of another library."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from raysae.console.command_line import DONE, PARTLY, Parser, run_command
from raysae.console.output import Table, say, table_lines

if TYPE_CHECKING:
    from raysae.atlas.library import Exported
    from raysae.sae import SAE

OWN = "raysae"


def main(arguments: list[str]) -> int:
    """Write the SAE or the atlas in one folder into another as the library of ``--to`` keeps it."""
    from raysae.sae.interchange import FORMATS

    parser = Parser(
        prog="python -m raysae.export",
        description="Write an SAE, or every SAE of an atlas, as another library keeps it; or SAEs of "
        f"SAELens as an atlas of raysae (--to {OWN}).",
    )
    parser.add_argument(
        "sae",
        help="an SAE's folder, such as runs/NAME/sweet_spot; or an atlas: a run, its atlas folder, an "
        "exported atlas, or a folder of SAEs that SAELens wrote",
    )
    parser.add_argument("--to", required=True, choices=[*FORMATS, OWN], help="whose format")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the folder to write, a new one"
    )
    parser.add_argument(
        "--format",
        choices=[OWN, *FORMATS],
        help="the format of the SAEs that are read (by default found from their files)",
    )
    parser.add_argument(
        "--k",
        type=int,
        help="of a hierarchical_topk SAE: the K to write it at, as topk (its largest)",
    )
    args = parser.parse_args(arguments)
    return _export_one(args) if _is_an_sae(args.sae) else _export_all(args)


def _is_an_sae(name: str) -> bool:
    """Whether it is one SAE's folder, or nothing, which is then told as for an SAE."""
    from raysae.storage.files import expanded
    from raysae.storage.remote import is_uri

    folder = expanded(name)
    if is_uri(name):
        return False
    files = ("cfg.json", "ae.pt")
    return not folder.is_dir() or any((folder / file).is_file() for file in files)


def _export_one(args: Namespace) -> int:
    from raysae.sae import export_sae, load_sae, save_sae

    sae = load_sae(args.sae, format=args.format)
    sae = sae if args.k is None else _at_k(sae, args.k)
    if args.to == OWN:
        save_sae(sae, args.out)
    else:
        export_sae(sae, args.out, args.to)
    say(f"{args.out}: {sae.config.variant}, d_in {sae.d_in}, d_sae {sae.config.d_sae}")
    say(LOADERS[args.to].format(folder=str(args.out)))
    return DONE


def _at_k(sae: "SAE", k: int) -> "SAE":
    """The topk SAE that a hierarchical one is at ``k``. Raises UserError when there is none."""
    from raysae.errors import UserError
    from raysae.sae.hierarchical_topk import HierarchicalTopKSAE

    if not isinstance(sae, HierarchicalTopKSAE):
        raise UserError(
            f"--k is for hierarchical_topk; this SAE is {sae.config.variant}: leave --k out"
        )
    try:
        return sae.at_k(k)
    except ValueError as error:
        raise UserError(f"--k: {error}") from None


def _export_all(args: Namespace) -> int:
    from raysae.atlas.library import export_atlas, open_atlas
    from raysae.errors import UserError

    if args.k is not None:
        raise UserError("--k is for one SAE; an atlas is exported as it is: leave --k out")
    exported = export_atlas(open_atlas(args.sae, format=args.format), args.out, args.to)
    _print_failed(exported)
    count = len(exported.folders)
    say(f"{args.out}: {count} site{'s' * (count != 1)}, listed in atlas.json")
    if args.to == OWN:
        say(f"import raysae; atlas = raysae.open_atlas({str(args.out)!r})")
    else:
        first = Path(args.out) / next(iter(exported.folders.values()))
        say(LOADERS[args.to].format(folder=str(first)))
    return PARTLY if exported.failed else DONE


def _print_failed(exported: "Exported") -> None:
    if not exported.failed:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("site", "not written, because"):
        table.add_column(head, no_wrap=True)
    for site, reason in exported.failed.items():
        table.add_row(str(site), reason)
    for line in table_lines(table):
        say(line)


LOADERS = {
    OWN: "import raysae; sae = raysae.load_sae({folder!r})",
    "saelens": "from sae_lens import SAE; sae = SAE.load_from_disk({folder!r})",
    "sparsify": "from sparsify import SparseCoder; sae = SparseCoder.load_from_disk({folder!r})",
    "dictionary_learning": (
        "from dictionary_learning.utils import load_dictionary; "
        'sae, config = load_dictionary({folder!r}, device="cpu")'
    ),
}
"""How each library loads what was written."""

if __name__ == "__main__":
    sys.exit(run_command(main))
