"""Where models and evaluation rows come from: wheels by hash, a hub by revision, a local directory by digest."""
