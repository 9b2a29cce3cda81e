"""Every setting that a recipe has, by its path. Shared by several test modules."""

from flows import recipe_words, recipes

KEYS = [key for key in recipes.keys() if key[:-1]]  # noqa: SIM118
LISTS = [tuple(name.split(".")) for name in recipe_words.ENTRIES]
SETTINGS = [key for key in KEYS if key not in {known[:-1] for known in KEYS} and key[:2] not in LISTS]
SETTINGS += LISTS
