"""`python -m sgps.pretrain`: make the base network without the command line of the centre."""

import argparse
import sys
from pathlib import Path

from sgps.errors import SgpsError
from sgps.pretrain.process import prepare_process


def main() -> int:
    """Exit code: 0 done, 130 stopped (start again to continue), else that of the error."""
    parser = argparse.ArgumentParser(prog="python -m sgps.pretrain", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the image sets of the recipe")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result; a stopped run continues there")
    parser.add_argument("--recipe", type=Path, help="YAML file; default: the shipped recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args()
    prepare_process(options.threads)
    from sgps.device import choose
    from sgps.pretrain.base import run
    from sgps.pretrain.progress import console

    try:
        with console() as report:
            device = choose(options.device)
            run(options.data, options.out, options.recipe, options.seed, options.threads, report, device=device)
    except SgpsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped; start again with the same arguments to continue\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
