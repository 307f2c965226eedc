"""What a user brings: the files of the raw tables, what they hold, and how each engine reads them."""
