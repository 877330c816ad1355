"""``python -m jaxdp.data pack NAME... --out OUT [--parts N]``."""

import argparse
import sys

from jaxdp import data


def main(argv: list[str] | None = None) -> int:
  """Parses the command line and calls ``jaxdp.data.pack``."""
  parser = argparse.ArgumentParser(prog="python -m jaxdp.data")
  commands = parser.add_subparsers(dest="command", required=True)
  pack = commands.add_parser("pack", help="write datasets as .npz files")
  pack.add_argument("names", nargs="+", metavar="NAME")
  pack.add_argument("--out", required=True, help="a folder, or NAME.npz")
  pack.add_argument("--parts", type=int, default=1, help="files per dataset")
  pack.add_argument("--data_dir", help="where the datasets are")
  pack.add_argument("--cache_dir", help="where decoded arrays are kept")
  args = parser.parse_args(argv)
  try:
    written = data.pack(
      args.names,
      args.out,
      parts=args.parts,
      data_dir=args.data_dir,
      cache_dir=args.cache_dir,
    )
  except (OSError, ValueError, ImportError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  for path in written:
    print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")
  return 0


if __name__ == "__main__":
  sys.exit(main())
