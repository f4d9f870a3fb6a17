"""What a request is and what a completion is: ids and keys, chat templates, the wire formats, the look-up."""
