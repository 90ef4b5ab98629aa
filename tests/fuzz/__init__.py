"""Whatever bytes a file holds, its reader reads it or refuses it in one line: the same promise, fuzzed and tested."""
