"""The station of scans: from a file on disk to a cached tensor."""
