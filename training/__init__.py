"""edgerec.training: fine-tune, distill, evaluate, export. Needs ``pip install 'edgerec[train]'``."""

if __name__ == "training":
    raise ImportError("this folder is the package edgerec.training: run `pip install -e .` and import edgerec.training")
