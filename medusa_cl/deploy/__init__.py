"""What a learnt model is used for: answering pictures, files of graphs, heads that are published."""
