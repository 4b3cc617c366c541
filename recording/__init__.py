"""What was recorded: the model, the store on disk and pure views of it. Imports nothing else of this project."""
