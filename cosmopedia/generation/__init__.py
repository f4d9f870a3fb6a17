"""What a request is and what a completion is: keys, the model and its chat template, the HTTP APIs, the look-up."""
