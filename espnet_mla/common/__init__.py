"""What every room needs and none owns: errors, files, tables, logs, the machine, processes, scoring's alignment."""
