"""What `train_sft.py` needs besides TRL: the mix of rows, batches without waste, validation, and who is trained."""
