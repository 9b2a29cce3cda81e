PARSERS = {}  # type: ignore
