"""What leaves the repository: folders made from data/corpus/ and models/export/, checked, and sent to the hub."""
