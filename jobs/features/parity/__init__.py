"""What serving used, value by value, against what the offline tables say of the same moment."""
