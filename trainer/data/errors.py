"""The one error of text that cannot be trained on; everything else that is wrong with a corpus is a named skip."""

from atoll.protocol.errors import AtollError


class DataError(AtollError):
    """A corpus that is missing, unusable or too small as a whole. The sentence names the path and the remedy."""

    code = "bad_data"
