"""The contract between offline and online, and the Feast repository derived from it."""
