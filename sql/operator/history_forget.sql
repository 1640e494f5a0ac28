-- Minutes before $1. Every process deletes for all: those of processes that are gone would stay for ever.
DELETE FROM {relay}.history WHERE minute < $1
