"""Decoding with several models that choose every token together; the rules are in `decodings`."""

from luthier.decoding.decode import Answer, answers, decode
from luthier.decoding.members import Member, members_of
from luthier.decoding.processor import DecodingProcessor

__all__ = ["Answer", "DecodingProcessor", "Member", "answers", "decode", "members_of"]
