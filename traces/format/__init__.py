"""What a trace file is: layout, trace, checks, archive; frequency profiles and placements."""
