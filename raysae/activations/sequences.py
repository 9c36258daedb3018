"""Reading the files of sequences: the texts and tokens that the transformer read."""

import pyarrow as pa

from raysae.activations.damage import damage_told
from raysae.activations.pages import footer_problem
from raysae.activations.schema import SEQUENCES_SCHEMA, columns_text
from raysae.activations.store_files import StoreFile


def read_sequences(path: StoreFile, columns: list[str] | None = None) -> pa.Table:
    """A file of sequences, a table of ``SEQUENCES_SCHEMA`` or of some of its columns.

    Raises UserError, naming the file, when it is damaged or has other columns.
    """
    names = columns or SEQUENCES_SCHEMA.names
    wanted = pa.schema([SEQUENCES_SCHEMA.field(name) for name in names])
    advice = "'python -m raysae.store verify' lists what is wrong with the store"
    with damage_told(path, "Parquet file of sequences", advice), path.parquet() as file:
        if problem := footer_problem(file.metadata, path.size(), 1):
            raise ValueError(f"its footer claims {problem}")
        table = file.read(columns=columns)
        table.validate(full=True)  # texts may not be UTF-8
        if not table.schema.equals(wanted):
            raise ValueError(f"its columns are {columns_text(table.schema)}")
    return table
