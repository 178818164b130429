"""The JSON schema of a settings file, generated from the settings themselves.

`python -m sublora.config.schema > workflow/schemas/config.schema.json` (or `make schema`) writes the copy that
the workflow validates with and that editors can use; a test compares the two.
"""

import json

from sublora.config.settings import Settings


def schema_text() -> str:
    """The schema as indented JSON, ending in a newline."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | Settings.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
