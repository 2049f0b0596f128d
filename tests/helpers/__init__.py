"""What tests of several folders share: models, rows, worlds and servers, none of which is a test."""
