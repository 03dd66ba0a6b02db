"""Few-shot methods beside ours, by family: closed forms, easyfsl's, trained across tasks, text, fine-tuned body."""
