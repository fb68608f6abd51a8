"""``python -m edgerec`` is the ``edgerec`` command."""

from .cli import main

if __name__ == "__main__":
    main()
