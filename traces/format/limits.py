"""What is believed of a file before it is read, in one place: whatever is beyond it is refused in one line.

Each is far above what real files have and far below what would exhaust a laptop.
"""

MAX_HEADER_BYTES = 10_000  # of a .npy: numpy's own limit for a header that is parsed as a Python literal
MAX_META_BYTES = 16 << 20  # of a trace's JSON
# Compressed members that inflate beyond both are taken for a zip bomb; real routing deflates about 3 : 1.
BOMB_BYTES, BOMB_RATIO = 256 << 20, 100
# A column of equal values packs well; rows beyond both of these per byte of a Parquet file are taken for a bomb.
BOMB_ROWS, BOMB_ROWS_PER_BYTE = 1 << 20, 100
MOST_JSON_BYTES = 256 << 20  # of a line, or of a file that is one JSON value; a response of 128 k tokens has a third
MOST_COUNTS_BYTES = 64 << 20  # of counts of all experts as JSON
MOST_FACTS_BYTES = 1 << 20  # of a few facts as JSON
MOST_GGUF_BYTES = 256 << 20  # of a GGUF's header, token lists of vocabularies included
MOST_LINE_BYTES = 1 << 16  # of a line of integers
MOST_IDS = 1 << 26  # of one layer and pass; a real batch has thousands
MOST_LAYERS = 10_000
# Slots without a cell become -1; a log that would need many more slots than it has cells is damaged.
MOST_SLOTS, MOST_SLOTS_PER_CELL = 1_000_000, 100
