"""What are cheap levels worth that come from one network?"""
