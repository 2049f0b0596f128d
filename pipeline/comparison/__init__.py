"""The comparison of a store's runs: what is read of them, what sets them apart, and the page that shows it."""
