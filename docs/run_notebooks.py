"""Runs the notebooks on real weights and stores what they print and draw: `make notebooks`.

What libraries write to stderr, and when a cell ran, belongs to a machine and is not stored.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"


def run(file: Path) -> None:
    """Executes a notebook in its own folder and writes it back."""
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    nbformat.write(notebook, file)


if __name__ == "__main__":
    for each in sorted(FOLDER.glob("*.ipynb")):
        run(each)
