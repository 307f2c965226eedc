"""Raw data in: each module writes the raw tables of the contract."""
