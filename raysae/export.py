"""``python -m raysae.export``: an SAE into the format of another library."""

import sys

from raysae.console.command_line import DONE, Parser, run_command
from raysae.console.output import say


def main(arguments: list[str]) -> int:
    """Write the SAE in one folder into another as SAELens, sparsify or dictionary_learning keep it."""
    from raysae.sae import export_sae, load_sae
    from raysae.sae.interchange import FORMATS

    parser = Parser(
        prog="python -m raysae.export", description="Write an SAE as another library keeps it."
    )
    parser.add_argument("sae", help="an SAE's folder, such as runs/NAME/sweet_spot")
    parser.add_argument("--to", required=True, choices=FORMATS, help="whose format")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the folder to write, a new one"
    )
    parser.add_argument(
        "--format",
        choices=["raysae", *FORMATS],
        help="the format of SAE (by default found from its files)",
    )
    args = parser.parse_args(arguments)
    sae = load_sae(args.sae, format=args.format)
    export_sae(sae, args.out, args.to)
    say(f"{args.out}: {sae.config.variant}, d_in {sae.d_in}, d_sae {sae.config.d_sae}")
    say(LOADERS[args.to].format(folder=str(args.out)))
    return DONE


LOADERS = {
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
