"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.rewrites.multicritique import MultiCritique as MultiCritique
from luthier.methods.rewrites.s3ft import S3FT as S3FT
from luthier.methods.rewrites.yes_no import YesNo as YesNo

AXIS: str
