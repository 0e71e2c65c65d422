"""What turns a table's data into runs, numbers and files."""
