"""``python -m cov3d`` is ``cov3d``."""

from cov3d.cli import main

if __name__ == "__main__":
    main()
