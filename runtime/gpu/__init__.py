"""Everything that a GPU can show about this project, in one command: `python -m runtime.gpu`, `make gpu`.

A machine with a GPU is rented by the minute and may go at any moment. So the day is a table of parts (`table`), each
of them processes of its own in a time box (`box`); what a part found is kept the moment it ends, and started again the
day does what is missing (`day`); after every part one archive to send back is packed (`archive`) with the page that
VALIDATION.md should get (`page`).

What runs inside a part lies in `runtime.gpu.parts` and may import anything. The rooms here need the standard library
alone: a day must be able to say what a machine lacks, and to bring it.
"""
