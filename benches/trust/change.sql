-- One membership of each scene changes its role, and with it the score of the scene.
UPDATE memberships SET role = CASE role WHEN 'owner' THEN 'guest' ELSE 'owner' END WHERE user_did = 'did:1';
