"""Topics of the web rows: sentence vectors, clusters, keywords, the labelling prompt, reviewed decisions."""
