"""What every floor above the checker uses: errors, progress, run folders, recording and evaluation of graphs."""
